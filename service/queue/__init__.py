"""A durable queue of jobs in front of a Ray cluster.

`requests` says what a job is, `tables` and `store` keep them, `fair` decides who is next, `dispatcher` runs attempts as
durable workflows (`attempts` is one attempt), `ray_api` speaks to Ray, `witness` stands beside a job on the cluster,
`arrivals` makes jobs of new slides and of schedules. The jobs table is the truth; what Ray says is a hint.
"""
