"""How an attempt reaches the model APIs when a gateway stands before them: its address and a token instead of a key.

Which APIs a kind can use is seen from the variables it asks for: whoever wants `ANTHROPIC_API_KEY` speaks to Anthropic's.

Where the gateway holds no key but passes the agent's own login on, the agent keeps that, and the token comes in a header of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

KEY_APIS: Final[Mapping[str, str]] = {
    "ANTHROPIC_API_KEY": "anthropic",
    "ANTHROPIC_AUTH_TOKEN": "anthropic",
    "CLAUDE_CODE_OAUTH_TOKEN": "anthropic",
    "OPENAI_API_KEY": "openai",
    "CODEX_API_KEY": "openai",
    "CODEX_ACCESS_TOKEN": "openai",
    "GEMINI_API_KEY": "gemini",
    "GOOGLE_API_KEY": "gemini",
}
"""Variables that hold a key or login -> the API it opens. A gateway that serves the API keeps all of them from the agents."""
RETRIES: Final = 2
"""What a CLI may try again by itself: the gateway waits and tries in its place, and both together would do it twenty-five times."""
_VARIABLES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "anthropic": (("ANTHROPIC_BASE_URL", ""), ("ANTHROPIC_API_BASE", "")),
    "openai": (("OPENAI_BASE_URL", "/v1"), ("OPENAI_API_BASE", "/v1")),
    "gemini": (("GOOGLE_GEMINI_BASE_URL", ""),),
}
_TOKENS: Final[Mapping[str, str]] = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "gemini": "GEMINI_API_KEY"}
TOKEN_HEADER: Final = "x-orchestra-token"
"""Shows the token beside a login; the gateway sends it on to nobody."""
TOKEN_VARIABLE: Final = "ORCHESTRA_GATEWAY_TOKEN"
"""The token for programs whose configuration names a variable to take a header from."""
_HEADER_VARIABLES: Final[Mapping[str, str]] = {"anthropic": "ANTHROPIC_CUSTOM_HEADERS", "gemini": "GEMINI_CLI_CUSTOM_HEADERS"}
"""API -> the variable that adds headers to what its own program asks. Codex has none: its configuration names the header."""
_SEPARATORS: Final[Mapping[str, str]] = {"ANTHROPIC_CUSTOM_HEADERS": "\n", "GEMINI_CLI_CUSTOM_HEADERS": ", "}


class Access(msgspec.Struct, frozen=True):
    """One attempt's way through the gateway."""

    url: str
    """`http://127.0.0.1:PORT`, as the node reaches it."""
    token: str
    """Good for this attempt only."""
    apis: tuple[str, ...]
    """APIs behind it: `anthropic`, `openai`, `gemini`."""
    logins: Mapping[str, str] = {}
    """Those of all APIs for which agents keep their own login -> the path at which the gateway serves that, or nothing for the usual one."""

    def address(self, api: str) -> str:
        """Returns the base URL as clients of that API write it."""
        return self.url + (self.logins.get(api) or _VARIABLES[api][0][1])

    @property
    def held(self) -> tuple[str, ...]:
        """The APIs of which the gateway holds the keys, so that agents have none."""
        return tuple(api for api in self.apis if api not in self.logins)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which CLIs and libraries find it, and show the token: as their key, or beside their login."""
        found = {name: self.url + (self.logins.get(api) or path) for api in self.apis for name, path in _VARIABLES[api]}
        found |= {_TOKENS[api]: self.token for api in self.held}
        if len(self.held) < len(self.apis):
            found[TOKEN_VARIABLE] = self.token
        header = f"{TOKEN_HEADER}: {self.token}"
        return found | {_HEADER_VARIABLES[api]: header for api in self.apis if api in self.logins and api in _HEADER_VARIABLES}

    def laid_over(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Returns an attempt's variables with these in their place; headers that it names stay beside ours."""
        own = self.environment
        for name, separator in _SEPARATORS.items():
            if name in own and environment.get(name):
                own[name] = f"{environment[name]}{separator}{own[name]}"
        return {**environment, **own}


def apis_of(variables: Iterable[str]) -> frozenset[str]:
    """Returns the APIs that these variables have keys of."""
    return frozenset(KEY_APIS[name] for name in variables if name in KEY_APIS)


def keys_of(apis: Iterable[str]) -> frozenset[str]:
    """Returns the variables that hold keys of these APIs."""
    wanted = frozenset(apis)
    return frozenset(name for name, api in KEY_APIS.items() if api in wanted)
