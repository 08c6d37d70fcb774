"""Plain HTTP, as a probe speaks it."""

import http.client


def get(address: str, path: str) -> int:
    """The status of a GET."""
    return fetch(address, path)[0]


def fetch(address: str, path: str) -> tuple[int, str]:
    """Status and body of a GET."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
