from django.apps import AppConfig


class RuntimeConfig(AppConfig):
    name = "zenzefi.runtime"
    label = "runtime"
    verbose_name = "Runtime"
