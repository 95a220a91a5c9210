"""headstart inside other libraries; each module imports its own extra, and nothing else imports it."""
