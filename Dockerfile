# docker build -t coprs .
# docker run --read-only --cap-drop ALL --security-opt no-new-privileges -v coprs:/data -p 127.0.0.1:7860:7860 coprs
FROM python:3.12-slim

# The one folder that is written to: downloads, uploads, caches.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin coprs \
    && install -d -o coprs -g coprs -m 700 /data
VOLUME /data

WORKDIR /srv/coprs
COPY assets/docs/constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --require-hashes -r /tmp/constraints.txt && rm /tmp/constraints.txt

# Belongs to root; everybody may read it.
COPY . .
RUN chmod -R u=rwX,go=rX . && python -m compileall -q app coprs_core

# USER: PyTorch asks for the name of the user, also of one that the system does not know.
ENV USER=coprs \
    HOME=/data \
    TMPDIR=/data \
    HF_HOME=/data/hf \
    TORCH_HOME=/data/torch \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    COPRS_HOST=0.0.0.0 \
    COPRS_PORT=7860
EXPOSE 7860
USER 10001:10001

HEALTHCHECK --interval=30s --timeout=10s --start-period=2m \
    CMD ["python", "-c", "import http.client, os, sys; page = http.client.HTTPConnection('127.0.0.1', int(os.environ['COPRS_PORT']), timeout=9); page.request('GET', '/'); sys.exit(page.getresponse().status != 200)"]
CMD ["python", "app.py"]
