"""HTTP API of the job queue.

`app` builds the application from the routes in `routes/`. `gate/` checks each request before the application sees it,
and `problems` turns errors into responses. The routes only define paths and parameters; the other modules do the work.
"""
