# The environment that the pipeline runs in; docs/scale.md tells how to use it. torch's wheels bring
# CUDA, so that the base image needs none. It isn't the slim one: DVC needs git, torch.compile gcc.
FROM python:3.11

COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt

# The checkout is mounted at /work, a volume for what is downloaded or resumed at /cache. Both work
# for any `--user`, who has no name and no home folder in this image. Experiments are commits, which
# need an author; a name in the config of the mounted repository goes first.
RUN mkdir --mode=1777 /cache && git config --system safe.directory /work \
    && git config --system user.name user && git config --system user.email user@localhost
ENV HOME=/cache USER=user
WORKDIR /work
CMD ["dvc", "repro"]
