"""Other models that are asked things: endpoints, local vision-language models, cached replies."""
