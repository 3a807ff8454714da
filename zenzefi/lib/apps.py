from django.apps import AppConfig


class LibConfig(AppConfig):
    name = "zenzefi.lib"
    label = "lib"
    verbose_name = "Platform"
