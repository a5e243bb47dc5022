"""Weight files: the embedded model, and the loading and saving that families share."""
