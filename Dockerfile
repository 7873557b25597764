# docker build -t puzzle-cam . && docker run --gpus all --shm-size 8g -v /data:/data puzzle-cam \
#   bash -c "DATA=/data/VOCdevkit/VOC2012 RUNS=/data/runs bash scripts/pipeline.sh"
FROM python:3.11-slim
WORKDIR /puzzle-cam
COPY requirements*.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-timm.txt
COPY . .
# So that the scripts take this environment and make none.
ENV VIRTUAL_ENV=/usr/local
CMD ["bash", "scripts/demo.sh"]
