"""A page to drop a picture on, and the API behind it: ``spatialflow serve``.

    command.py    arguments, the server's start
    app.py        routes, and who may ask
    guard.py      hosts, origins, token, headers of every answer
    body.py       request bodies of limited size
    requests.py   the queue before the one thread that runs the model
    answers.py    JSON with run-length masks, PNG of ids, drawn PNG
    metrics.py    counters for Prometheus
    static/       the page

Nothing here imports torch unless a config is served.
"""
