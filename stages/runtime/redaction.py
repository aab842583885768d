"""Keep secrets out of what is printed: messages, log lines, tracebacks."""

import os
import re

# Variables that hold a secret: OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, ...
SECRET_NAME = re.compile(
    r"(key|token|secret|pass(word|wd|phrase)?|credentials?|connection_string)(_id)?$",
    re.IGNORECASE,
)
MIN_SECRET_LENGTH = 6  # a shorter value, such as "true", is no secret
# https://user:password@host, and https://token@host
URL_PASSWORD = re.compile(r"(\b[a-z][a-z\d+.-]*://)[^/\s]+@", re.IGNORECASE)
# https://host/v1?api_key=..., and the signature of a signed URL
URL_KEY = re.compile(
    r"([?&][\w.-]*(?:key|token|secret|password|sig|signature|credential)=)[^&\s\"',]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace each secret of the environment by the name of its variable.

    A value with white space or quotes is replaced part by part, for a library may show it as one
    that ends in `\\n`. The user, the password and the keys in a URL become `***`.
    """
    for name, value in os.environ.items():
        if not SECRET_NAME.search(name):
            continue
        for secret in sorted(re.split(r"[\s\"']+", value), key=len, reverse=True):
            if len(secret) >= MIN_SECRET_LENGTH:
                text = text.replace(secret, f"${name}")
    return URL_KEY.sub(r"\1***", URL_PASSWORD.sub(r"\1***@", text))
