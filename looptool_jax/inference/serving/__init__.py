"""One model behind a server: OpenAI's API over the engine, and JetStream's own gRPC service."""
