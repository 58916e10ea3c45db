"""What a model is, shared by train, evaluate and serve so that they cannot drift apart."""
