"""The JetStream engine, sampling, deterministic continuous batching, and chat models on the mesh."""
