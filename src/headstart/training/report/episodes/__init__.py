"""What adapting to a task looks like, for each kind of data: `headstart.data.kind.DataKind` names who draws it."""
