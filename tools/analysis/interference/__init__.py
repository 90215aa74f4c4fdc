"""Pictures of the interference of tasks, of the scalars that TaskInterferenceHook wrote."""
