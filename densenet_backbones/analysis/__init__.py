"""Plans without running: parameters, multiply-adds and memory."""
