"""The VaultML operator: reconciles VaultMLPipeline resources into workers."""
