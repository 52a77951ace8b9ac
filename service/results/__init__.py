"""Results of scoring: tables, metrics, reports, pictures."""
