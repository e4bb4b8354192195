"""Reports that people read: console lines, tables, plots and pictures."""
