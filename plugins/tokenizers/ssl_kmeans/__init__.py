"""Semantic tokens from one clustered layer of a pretrained self-supervised model."""
