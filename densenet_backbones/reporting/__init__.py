"""Reports people read: console lines, tables, plots and pictures."""
