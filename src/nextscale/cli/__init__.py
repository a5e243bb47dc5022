"""The command line, ``nextscale``: one module per command, each imported when it is called."""
