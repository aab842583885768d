import stages  # noqa: F401  # checks that this Python can run the tools
