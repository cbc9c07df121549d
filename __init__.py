"""limner: unified vision-language models that write and illustrate in one stream."""
