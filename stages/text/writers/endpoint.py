"""A language model behind an OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp, a hosted one."""

import json
import os
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log
from stages.runtime.redaction import redact
from stages.text.writers.answers import Answer

CONNECT_TIMEOUT = 10  # seconds
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
# Seconds before each repetition of a request, where the endpoint's Retry-After gives no more.
PAUSES = (1, 3, 10, 30)
MAX_RETRY_AFTER = 120  # seconds; a longer one is not waited for
PASSING_STATUS = (408, 409, 429)  # as are those from 500 on, but for 501
REFUSED_STATUS = (400, 422, 501)  # of a request with a parameter that is not known
MODEL_STATUS = (400, 404, 413, 422, 501)  # of a model that is not there, or takes no such request
BAD_KEY = re.compile(r"\bapi[ _-]?key\b", re.I)  # in the words of a 400, as Gemini's
# "Please retry in 34.07s.", "Try again after 20 seconds", "in 1m12.5s", in the words of a 429
RETRY_IN = re.compile(
    r"\b(?:retry|try again) (?:in|after) (?=\d)"
    r"(?:(\d+) ?h[a-z]* ?)?(?:(\d+) ?m(?!s|illi)[a-z]* ?)?(?:(\d+(?:\.\d+)?) ?s)?",
    re.I,
)
TOO_LONG = re.compile(r"context[ _-]?(length|window|size)", re.I)  # of a request and its answer
V1_ADVICE = ": most such URLs end in /v1"
MAX_SHOWN = 300  # characters of an endpoint's own words


class EndpointError(Exception):
    """An endpoint does not answer, or not as it should. The message goes on after its URL."""

    def __init__(
        self,
        message: str,
        key: str = "prompt.openai_base_url",
        status: int | None = None,
        is_passing: bool = True,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.key = key  # the params key at fault
        self.status = status  # of HTTP
        self.is_passing = is_passing  # whether the same request may succeed later
        self.retry_after = retry_after  # seconds


class Message(BaseModel):
    """What a model answers: a text, or parts of which some have a text."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """One of several alternative answers. With an `error` it is none."""

    message: Message
    finish_reason: str | None = None
    error: Any = None


class Completion(BaseModel):
    """A chat completion, as far as it is read here."""

    choices: list[Choice] = Field(min_length=1)


class Endpoint:
    """Asks one model; ends the run with one line where it cannot be asked.

    What may pass is tried again: HTTP 429, server errors, broken answers. After silence, or without
    a connection, only an endpoint that has answered before is tried again.
    """

    def __init__(self, base_url: str, model: str, timeout: int):
        """Make the client with the key in $OPENAI_API_KEY. `timeout`: seconds for an answer."""
        import httpx2
        from openai import DefaultHttpx2Client, OpenAI

        self.base_url = redact(base_url)
        self.model = model
        self.timeout = timeout
        try:
            url = httpx2.URL(base_url)
            # Of https, the environment may name the certificate.
            is_local = url.scheme == "http" and url.host in LOOPBACK_HOSTS
            self.client = OpenAI(
                base_url=base_url,
                # Local servers need no key, but the client insists on one.
                api_key=read_key() or "none",
                max_retries=0,
                timeout=httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT),
                # A proxy of the environment cannot reach a server on this machine.
                http_client=DefaultHttpx2Client(trust_env=not is_local),
            )
        # ImportError: of a SOCKS proxy. OSError: of a certificate file that does not exist.
        except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
            exit_with_error(
                f"prompt.openai_base_url, or a proxy or SSL_CERT_FILE of the environment: {error}"
            )
        self.has_answered = False
        self.left_out: set[str] = set()  # parameters that the endpoint refuses

    def ask(self, request: dict[str, Any]) -> Answer:
        """Return the answer to the parameters of a chat completion."""
        while True:
            parameters = self.accepted_parameters(request)
            try:
                answer = self.send(parameters)
            except EndpointError as error:
                self.leave_out_refused(error, parameters)
                continue
            # Some models fill the limit with spaces where they have to write JSON. Others fill it
            # with thoughts, which the format does not change.
            is_filled = answer.is_cut and not answer.text
            if answer.text.strip() or is_filled or "response_format" not in parameters:
                return answer
            self.leave_out("response_format", "answers without text")

    def accepted_parameters(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of a request without those that the endpoint refuses."""
        accepted = {name: value for name, value in request.items() if name not in self.left_out}
        if "max_tokens" in self.left_out:
            accepted["max_completion_tokens"] = request["max_tokens"]
        return accepted

    def leave_out_refused(self, error: EndpointError, parameters: dict[str, Any]) -> None:
        """Leave out the parameter that an error refuses; without one, end the run.

        The line names the params key at fault and holds the endpoint's own words.
        """
        refused = refused_parameter(error, parameters)
        if not refused:
            exit_with_error(f"{error.key}: {self.base_url}, asked for {self.model}, {error}")
        self.leave_out(refused, str(error))

    def leave_out(self, parameter: str, reason: str) -> None:
        """Leave a parameter out of this request and of all later ones, and say so."""
        self.left_out.add(parameter)
        instead = f"without {parameter}"
        if parameter == "max_tokens":
            instead = "with max_completion_tokens"
        log(f"prompt: {self.base_url} {reason}: asking it {instead}")

    def send(self, parameters: dict[str, Any]) -> Answer:
        """Send a request, again after failures that may pass."""
        for pause in PAUSES:
            try:
                return self.send_once(parameters)
            except EndpointError as error:
                # Some servers answer 500, else a passing failure, to a format they don't know.
                error.is_passing = error.is_passing and not refuses_format(error, parameters)
                self.wait_after(error, pause)
        return self.send_once(parameters)

    def wait_after(self, error: EndpointError, pause: float) -> None:
        """Wait until a request can be sent again; raise the error where that would not help."""
        wait = max(pause, error.retry_after or 0)
        if not error.is_passing or wait > MAX_RETRY_AFTER:
            raise error
        log(f"prompt: {self.base_url} {error}: asking it again in {wait:.0f} s")
        time.sleep(wait)

    def send_once(self, parameters: dict[str, Any]) -> Answer:
        """Send a request and read the answer; raise EndpointError where there is none."""
        import httpx2
        import openai

        deadline = time.monotonic() + self.timeout
        stream = self.client.chat.completions.with_streaming_response
        try:
            with stream.create(model=self.model, **parameters) as response:
                body = read_body(response, deadline)
        except openai.APIStatusError as error:
            self.has_answered = True
            headers = dict(error.response.headers)
            raise status_error(error.status_code, error.response.text, headers) from error
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise self.unreachable(error) from error
            raise EndpointError(
                f"has not answered within {self.timeout} s; give a slow model more",
                key="prompt.openai_timeout",
                is_passing=self.has_answered,
            ) from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise self.unreachable(error) from error
        self.has_answered = True
        return read_completion(body)

    def unreachable(self, error: Exception) -> EndpointError:
        """Return the error of an endpoint that cannot be reached."""
        cause = error.__cause__ or error
        words = shorten(str(cause)) or type(cause).__name__
        return EndpointError(f"cannot be reached ({words})", is_passing=self.has_answered)


def read_body(response: Any, deadline: float) -> bytes:
    """Read the body of a response; raise httpx2.ReadTimeout at the deadline.

    The client's own timeout is that of each read: bytes may drip in for ever.
    """
    import httpx2

    body = b""
    for block in response.iter_bytes():
        body += block
        if time.monotonic() > deadline:
            raise httpx2.ReadTimeout("")
    return body


def read_key() -> str:
    """Return $OPENAI_API_KEY without the white space around it; "" where it is not set."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!#-&(-~]*", key):
        exit_with_error(
            "OPENAI_API_KEY: a key holds no space, line break, quote or sign beyond ASCII; set it "
            "to the key alone"
        )
    return key


def refuses_format(error: EndpointError, parameters: dict[str, Any]) -> bool:
    """Whether an error names the format of the answers that a request asks for."""
    named = re.search("response_format|json.schema|grammar", str(error))
    return "response_format" in parameters and named is not None


def refused_parameter(error: EndpointError, parameters: dict[str, Any]) -> str | None:
    """Return the parameter that can be left out after an error; None if there is none.

    What is asked for stays the same: `temperature` and `top_p`, which params set, are not left out.
    """
    words = str(error)
    if refuses_format(error, parameters):
        return "response_format"
    if error.status not in REFUSED_STATUS or re.search("temperature|top_p", words):
        return None
    if BAD_KEY.search(words) or TOO_LONG.search(words):
        return None
    if "max_tokens" in parameters and "max_completion_tokens" in words:
        return "max_tokens"
    if "seed" in parameters and re.search(r"\bseed\b", words):
        return "seed"
    # The youngest parameter, which some refuse without naming it.
    return "response_format" if "response_format" in parameters else None


def status_error(status: int, text: str, headers: dict[str, str]) -> EndpointError:
    """Return the error of an answer with an HTTP status of 400 or more."""
    words = error_words(text)
    message = f"answers {status} ({words})" if words else f"answers {status}"
    key = "prompt.openai_base_url"
    retry_after = read_retry_after(headers.get("retry-after", ""))
    said = RETRY_IN.search(text)
    if retry_after is None and said and any(said.groups()):
        hours, minutes, seconds = (float(number or 0) for number in said.groups())
        retry_after = 3600 * hours + 60 * minutes + seconds
    is_passing = status in PASSING_STATUS or (status >= 500 and status != 501)
    if "quota" in words.lower() and retry_after is None:  # it is used up, and does not fill again
        is_passing = False
    if status in (401, 403) or (status == 400 and BAD_KEY.search(words)):
        message += ": check the key in OPENAI_API_KEY"
    elif status == 404 and "model" not in words.lower():
        message += V1_ADVICE
    elif status in REFUSED_STATUS and re.search("temperature|top_p", words):
        key = "prompt.temperature, prompt.top_p"
        message += ": null leaves one out"
    elif status in MODEL_STATUS and TOO_LONG.search(words):
        key = "prompt.max_tokens, prompt.top_k"
    elif status in REFUSED_STATUS and re.search("max_(completion_)?tokens", words):
        key = "prompt.max_tokens"
    elif status in MODEL_STATUS:
        key = "prompt.openai_model"
    elif retry_after and retry_after > MAX_RETRY_AFTER:
        message += f": to be asked again in {retry_after / 60:.0f} min"
    return EndpointError(message, key, status, is_passing, retry_after)


def error_words(text: str) -> str:
    """Return what an endpoint says in the body of an error: JSON, a web page or plain text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return shorten(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.S | re.I))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    for key in ("error", "message", "detail"):
        if isinstance(value, dict):
            value = value.get(key) or value
    return shorten(value if isinstance(value, str) else json.dumps(value))


def shorten(text: str) -> str:
    """Return the beginning of a text on one line, without secrets and halves of an emoji."""
    return redact(" ".join(without_surrogates(text).split()))[:MAX_SHOWN]


def without_surrogates(text: str) -> str:
    """Return a text without what UTF-8 cannot encode: JSON may name half of an emoji."""
    return text.encode("utf-8", "ignore").decode()


def read_retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header names by a number or a date; None if none."""
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def read_completion(body: bytes) -> Answer:
    """Read the body of an answer with HTTP status 200; raise EndpointError if it is none."""
    text = body.decode("utf-8-sig", errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("<"):
            raise EndpointError(
                f"is no OpenAI-compatible endpoint: it sends a web page ({error_words(text)})",
                is_passing=False,
            ) from error
        raise EndpointError(f"sends broken JSON ({shorten(text)})") from error
    if isinstance(value, dict) and value.get("error"):
        words = error_words(text)
        if "unexpected endpoint" in words.lower():  # LM Studio's 404
            raise EndpointError(f"answers 200 with an error ({words}){V1_ADVICE}", is_passing=False)
        raise EndpointError(f"answers 200 with an error ({words})")
    try:
        choice = Completion.model_validate(value).choices[0]
    except ValidationError as error:
        raise EndpointError(f"answers without a message ({shorten(text)})") from error
    if choice.error:
        words = error_words(json.dumps(choice.error))
        raise EndpointError(f"answers 200 with an error ({words})")
    content = choice.message.content or choice.message.refusal or ""
    if isinstance(content, list):
        # The other parts are thoughts, which some hosts also keep under "text".
        texts = [part for part in content if part.get("type") in ("text", "output_text")]
        content = "".join(str(part.get("text", "")) for part in texts)
    content = redact(without_surrogates(content))
    reason = (choice.finish_reason or "stop").lower()
    is_cut = reason in ("length", "max_tokens")
    if not content.strip() and reason != "stop" and not is_cut:  # a filter, a call of a tool
        log(f"prompt: an answer has no text: finish_reason {shorten(reason)}")
    return Answer(content, is_cut)
