"""Where settings come from: what is passed, then the environment, then an optional TOML file.

Apart from the settings themselves, so that workers, which receive theirs from the supervisor, need not load it.
"""

from typing import Any

from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from inferplane.server.settings import Settings

__all__ = ["load_settings"]


class _Sources(Settings, BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="INFERPLANE_",
        env_nested_delimiter="__",
        frozen=True,
        toml_file="inferplane.toml",
        extra="ignore",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(**passed: Any) -> Settings:
    """The effective settings; pydantic.ValidationError where one is not valid."""
    return _Sources(**passed)
