"""Models of other libraries: Hugging Face weights are imported and exported (`huggingface`) without torch."""
