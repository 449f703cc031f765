"""The embedded model: a folder in diffusers layout beside this file; how it was trained is in recipe/."""
