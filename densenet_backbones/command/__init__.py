"""The `densenet` command: a table of its commands, and those that are no tool's own."""
