"""The results page: the paper's protocol in full, with controls; rows are measured once, tables come from them."""
