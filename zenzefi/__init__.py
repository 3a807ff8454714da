"""The project: settings, routing, the Celery application and the servers it brings along."""
