r"""Seventy and more ways in which people write pictures into Markdown, as they are found in public documents.

    ## NAME EXTENSION KEPT
    TEXT

Every `PIC` is another picture, `pic001` and so on: each has a name that is written once, so that the pictures that are
written can be counted without reading Markdown. A name with `gone` in it has no file. `KEPT` of them are pictures of
the document, the others problems. What is in code is called `example`, what is linked to `linked`: neither is written.
"""

STYLES = r"""
## commonmark md 3
![lamp](img/PIC.png) and ![lamp](<img/PIC.png> "A *title*") and ![a [b] c](img/PIC.png 'x')
## references md 3
![lamp][one] ![Two][] ![three]

[one]: img/PIC.png "Title"
[two]: <img/PIC.png>
[three]:
  img/PIC.png
## unused_definition md 0
Words.

[old]: img/PIC.png
## undefined_reference md 0
![the lamp of PIC][nowhere]
## definition_used_by_a_link md 0
[the lamp][one] is a link.

[one]: img/linked.png
## linked_picture md 2
[![lamp](img/PIC.png)](https://example.org) and [words ![lamp](img/PIC.png) words](x.html)
## list_and_quote md 3
1. one

    ![a](img/PIC.png)
2. two
> ![b](img/PIC.png)
> > - ![c](img/PIC.png)
## table md 2
| a | b |
|---|---|
| ![x](img/PIC.png) | ![y](img/PIC.png) |
## code md 1
`![x](img/example.png)` and ![y](img/PIC.png)

```md
![x](img/example.png)
```

    ![x](nowhere/example.png)
## comment md 1
<!-- ![x](img/example.png) --> ![y](img/PIC.png)
## escaped md 1
\![x](img/linked.png) and \\![y](img/PIC.png)
## percent_encoded md 1
![x](img/my%20PIC.png)
## raw_space md 2
![x](img/my PIC.png)

![y](img/my PIC.png "A title")
## brackets_in_path md 1
![x](img/my PIC (1).png)
## backslash_path md 1
![x](img\PIC.png)
## hackmd_size md 4
![x](img/PIC.png =200x100) ![x](img/PIC.png =200x) ![x](img/my PIC.png =x100) ![x](img/PIC.png "t" =50%x)
## pandoc_attributes md 2
![x](img/PIC.png){width=50%} and ![A caption](img/PIC.png){#fig:x .right width="50%"}
## kramdown_attributes md 2
![x](img/PIC.png){: width="300" .right}

![x](img/PIC.png)
{: .center }
## mkdocs_attributes md 1
![x](img/PIC.png){ width=300 loading=lazy }
## mkdocs_tabs md 3
=== "Linux"

    Open the box.

    ![a](img/PIC.png)

=== "Mac"

    ![b](img/PIC.png)


    ![c](img/PIC.png)
## mkdocs_admonitions md 4
!!! tip "Press ![a](img/PIC.png)"

    Words.


    - one

        ![b](img/PIC.png)

??? note

    ![c](img/PIC.png)

???+ danger
    ![d](img/PIC.png)
## mkdocs_nested md 1
!!! note

    === "One"

        ![a](img/PIC.png)
## mkdocs_figure md 1
<figure markdown>
  ![cable](img/PIC.png)
  <figcaption>The cable</figcaption>
</figure>
## pymdown_blocks md 1
/// caption
![x](img/PIC.png)
///
## light_and_dark md 2
![x](img/PIC.png#only-light) ![x](img/PIC.png#gh-dark-mode-only)
## details md 2
<details>
<summary>More</summary>

![x](img/PIC.png)

</details>
<details><summary>x</summary>![x](img/PIC.png)</details>
## html_img md 4
<img src="img/PIC.png"> <IMG ALT='x' SRC='img/PIC.png'/> <img
 src=img/PIC.png
 width="3">
<p align="center"><img src="img/PIC.png"></p>
## html_picture md 1
<picture>
  <source media="(prefers-color-scheme: dark)" srcset="img/PIC.png">
  <source type="image/webp" srcset="img/PIC.webp 2x, img/x.webp 1x">
  <img src="img/PIC.png" alt="x">
</picture>
## html_picture_without_img md 1
<picture><source srcset="img/PIC.png"><source srcset="img/PIC.png"></picture>
## html_lazy md 2
<img data-src="img/PIC.png" class="lazyload"> <img srcset="img/PIC.png 1x, img/twice.png 2x">
## html_video_poster md 1
<video controls poster="img/PIC.png" src="lamp.mp4"></video>
## html_object md 2
<object data="img/PIC.png" type="image/png"></object> <embed src="img/PIC.png">
## html_background md 1
<div style="height: 3em; background-image: url('img/PIC.png')"></div>
## html_unclosed md 0
Look: <img src="img/PIC.png" alt="x"

Words.
## html_svg md 0
<svg width="3"><path d="M0 0 PIC"/></svg>
## html_pre md 0
<pre>
![x](img/example.png)
</pre>
## html_div_markdown md 2
<div align="center" markdown="1">
![x](img/PIC.png)
<b>bold</b> ![x](img/PIC.png)
</div>
## myst_figure md 2
```{figure} img/PIC.png
---
alt: A kite
name: kite
---
The *kite*
```

:::{figure} img/PIC.png
:alt: Again
Again
:::
## myst_image md 2
```{image} img/PIC.png
:width: 200px
```

:::{image} img/PIC.png
:::
## myst_admonition md 4
```{note}
![x](img/PIC.png)
```

:::{tip} Look
![x](img/PIC.png)

```python
x = "![x](img/example.png)"
```
:::

::::{grid} 2
:::{grid-item-card} One
:img-top: img/PIC.png
Words.
:::
:::{grid-item-card}
![x](img/PIC.png)
:::
::::
## myst_tabs myst 2
````{tab-set}
```{tab-item} A
![x](img/PIC.png)
```
```{tab-item} B
![x](img/PIC.png)
```
````
## myst_figure_md myst 1
```{figure-md} fig
<img src="img/PIC.png" width="200px">

A caption
```
## myst_code md 0
```{code-block} md
![x](img/example.png)
```

:::{code} md
![x](img/example.png)
:::
## myst_rst md 2
```{eval-rst}
.. image:: img/PIC.png
   :alt: x

.. figure:: img/PIC.png
```
## rst_in_text md 0
.. image:: img/PIC.png
## quarto_figure qmd 3
![A caption](img/PIC.png){#fig-x fig-alt="x"}

::: {#fig-pair layout-ncol=2}
![One](img/PIC.png)

![Two](img/PIC.png){#fig-b}
:::
## quarto_callout qmd 1
::: {.callout-note}
![x](img/PIC.png)
:::
## rmarkdown_chunk Rmd 2
```{r lamp, echo=FALSE, out.width="50%"}
knitr::include_graphics(c("img/PIC.png", "img/PIC.png"))
```
## rmarkdown_code Rmd 1
```{r}
x <- 1
knitr::include_graphics("img/PIC.png")
```
## quarto_python qmd 0
```{python}
plt.savefig("img/example.png")
```
## quarto_html qmd 1
```{=html}
<img src="img/PIC.png">
```
## latex qmd 0
\begin{figure}\includegraphics[width=3cm]{img/PIC.png}\end{figure}
## hugo_figure md 3
{{< figure src="img/PIC.png" title="Lamp" link="img/linked.png" >}}

{{% figure src=img/PIC.png %}}

{{< figure
  src="img/PIC.png"
  alt="x"
>}}
## hugo_gallery md 2
{{< gallery "img/PIC.png" 'img/PIC.png' >}}
## hugo_escaped md 0
{{</* figure src="img/example.png" */>}}
## hugo_no_extension md 0
{{< img src="PIC" >}}
## hugo_relref md 1
![x]({{< ref "img/PIC.png" >}})
## jekyll_baseurl md 3
![a]({{ site.baseurl }}/img/PIC.png) ![b]({{ "/img/PIC.png" | relative_url }})
<img src="{{ '/img/PIC.png' | absolute_url }}">
## jekyll_include markdown 2
{% include image.html url="img/PIC.png" description="x" %}
{%- include figure image_path='/img/PIC.png' -%}
## jekyll_reference md 1
![x][lamp]

[lamp]: {{ site.baseurl }}/img/PIC.png
## jekyll_link md 1
![x]({% link img/PIC.png %})
## jekyll_highlight md 1
{% highlight ruby %}
puts 1
{% endhighlight %}

![x](img/PIC.png)
## octopress md 1
{% img left img/PIC.png 200 100 "A lamp" %}
## hexo md 2
{% asset_img PIC.png Lamp %}
{% asset_img "my PIC.png" "Lamp" %}
## liquid_in_text md 1
Hello {{ page.title }}, ![x](img/PIC.png){% if x %} and {% endif %} more. ${{ github.token }}
## gitbook md 2
{% hint style="info" %}
![x](img/PIC.png)
{% endhint %}

<figure><img src="img/PIC.png" alt=""><figcaption><p>x</p></figcaption></figure>
## pelican md 2
![x]({static}/img/PIC.png) ![x]({filename}/img/PIC.png)
## docusaurus mdx 4
import lamp from './img/PIC.png';

<img src={lamp} />

<img src={require('./img/PIC.png').default} alt="x" />

![x](@site/img/PIC.png) <img src={useBaseUrl("/img/PIC.png")} />
## docusaurus_themed mdx 1
<ThemedImage alt="x" sources={{
  light: useBaseUrl('/img/PIC.png'),
  dark: useBaseUrl('/img/PIC.png'),
}} />
## mdx_component mdx 1
<Image src="img/PIC.png" alt="x" /> <Zoom><Figure src={"img/PIC.png"} caption={<b>x</b>}/></Zoom>
## docusaurus_admonition mdx 1
:::tip Look

![x](img/PIC.png)

:::
## bare_path md 0
{% gallery %}
img/PIC.png
img/PIC.png
{% endgallery %}
## indented_tag md 0
    {{< figure src="img/PIC.png" >}}
## link_with_attributes md 1
[![x](img/PIC.png){ width=3 }](url){ .b }
## title_with_a_quote md 1
![x](img/PIC.png 'it's')
## octopress_figure md 1
{% figure [caption:"x"] %}
![x](img/PIC.png)
{% endfigure %}
## here md 1
```{r}
#| label: x
knitr::include_graphics(here::here("img", "PIC.png"))
```
## obsidian md 3
![[PIC.png]]

Words ![[img/PIC.png|200]] and ![[PIC.png|A lamp|200x100]]
## obsidian_note md 0
![[Other note PIC]]
## obsidian_alt_size md 1
![lamp|200](img/PIC.png)
## mediawiki md 1
[[File:PIC.png|thumb|200px|A lamp]]
## wiki_link_to_a_picture md 0
[[PIC.png]]
## logseq md 1
- ![x](../img/PIC.png){:height 200, :width 300}
## footnote md 1
A lamp[^1].

[^1]: See here.

    ![x](img/PIC.png)
## definition_list md 1
Lamp

:   Words.

    ![x](img/PIC.png)
## too_much_indent md 0
* one

        ![x](img/PIC.png)
## bare_address md 0
https://example.org/PIC.png
## remote md 0
![x](https://example.org/PIC.png) <img src="//example.org/PIC.jpg">
## badges md 0
[![build](https://img.shields.io/PIC.svg)](x)

Words.
## bbcode_and_others md 0
[img]img/PIC.png[/img]

image::img/PIC.png[Lamp]

!img/PIC.png!
## missing md 0
![x](img/PIC-gone.png) ![x](/img/PIC-gone.png) ![x](../img/PIC-gone.png)
## kinds md 2
![x](img/PIC.svg) ![x](img/PIC.tiff) ![x](img/PIC.avif) ![x](img/PIC.gif) ![x](img/PIC.pdf)
## yaml_front_matter md 1
---
title: x
---
![x](img/PIC.png)

Words.
## toml_front_matter md 1
+++
title = "x"
+++
![x](img/PIC.png)

Words.
## json_front_matter md 1
{
  "title": "x"
}

![x](img/PIC.png)

Words.
## pictures_alone md 0
![x](img/PIC.png)
![x](img/PIC.png)
"""
