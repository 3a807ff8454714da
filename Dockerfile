# One image for every role: web (the default command), worker, beat, migrate. See docker-compose.yml.
FROM python:3.11-slim AS packages
COPY requirements.txt /
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -r /requirements.txt

FROM python:3.11-slim
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DJANGO_SETTINGS_MODULE=zenzefi.settings.production \
    HOST=0.0.0.0 \
    PORT=8000 \
    VAR_DIR=/srv/zenzefi/var \
    PROMETHEUS_MULTIPROC_DIR=/tmp/prometheus
RUN useradd --system --uid 10001 --home-dir /srv/zenzefi zenzefi
WORKDIR /srv/zenzefi
COPY --from=packages /opt/venv /opt/venv
COPY . .
# Static files need settings that load, not settings that serve: these values exist during this one command.
RUN SECRET_KEY=$(python -c 'import secrets; print(secrets.token_urlsafe(64))') \
    DATABASE_URL=postgresql://build@127.0.0.1:1/build REDIS_URL=redis://127.0.0.1:1/0 \
    ZENZEFI_TARGET_URL=https://build.invalid ALLOWED_HOSTS=build.invalid BACKEND_URL=https://build.invalid \
    METRICS_TOKEN=only-while-building \
    python manage.py collectstatic --noinput \
    && chown -R zenzefi var
USER zenzefi
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["python", "-m", "zenzefi.runtime.probe"]
# What an earlier run of this container counted must not be added to the new one's metrics.
CMD ["sh", "-c", "rm -rf \"$PROMETHEUS_MULTIPROC_DIR\" && mkdir -p \"$PROMETHEUS_MULTIPROC_DIR\" && exec gunicorn -c python:zenzefi.runtime.gunicorn_conf"]
