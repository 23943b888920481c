"""Models of other libraries: Hugging Face weights in and out (`huggingface`), read and written without torch."""
