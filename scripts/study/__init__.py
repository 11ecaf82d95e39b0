"""The study: does the consensus decide better? Rows are measured once and kept; tables and figures come from them."""
