// Without this script every image is shown; with it, each gallery can be narrowed to a class.
document.querySelectorAll(".gallery:has(select)").forEach((gallery) => {
  const select = gallery.querySelector("select");
  const show = () => {
    gallery.querySelectorAll("article").forEach((image) => {
      const classes = image.dataset.classes.split(" ");
      const wanted = select.value === "overall" ? "overall" in image.dataset
        : select.value === "" || classes.includes(select.value);
      image.hidden = !wanted;
    });
    gallery.querySelectorAll("h4").forEach((heading) => {
      let next = heading.nextElementSibling;
      while (next && next.tagName === "ARTICLE" && next.hidden) next = next.nextElementSibling;
      heading.hidden = !next || next.tagName !== "ARTICLE";
    });
  };
  select.addEventListener("change", show);
  gallery.querySelector(".filter").hidden = false;
  show();
});
