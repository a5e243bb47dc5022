"""One folder per model family; a family imports ``nn`` and ``generation``, never another family."""
