"""What people use on tables of many small tasks today, as learners: ranked beside all others on the same tasks."""
