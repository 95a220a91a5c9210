"""The service: learns tasks and predicts over HTTP. It needs the extra ``serve``; the client needs nothing."""
