"""From a run to something that is used: loading, predicting, exporting, publishing, adapting."""
