"""One page of a results folder: what tables, comparisons and statuses say, drawn and put into a single HTML file."""
