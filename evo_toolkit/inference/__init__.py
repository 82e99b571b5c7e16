"""Running a model on sequences: log-likelihoods, embeddings, generation."""
