python3 -m venv .venv-tox && .venv-tox/bin/pip install -q tox && .venv-tox/bin/tox
.venv-tox/bin/tox -e lint,types      # seconds
.venv-tox/bin/tox -e docs            # this site, into docs/_build/html
.venv-tox/bin/tox -e accuracy        # small trainings, compared with committed expectations
