"""The engine on torch: a Hugging Face directory in, tokens out. The only package that imports torch."""
