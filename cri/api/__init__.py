"""The door of the service: CRI v1 as the Connect protocol with JSON, streams over WebSocket."""
