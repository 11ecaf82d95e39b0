"""The report: figures, the HTML page, and tables for papers, made from rows and run directories."""
