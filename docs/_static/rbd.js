// The buttons that unfold the sidebar show a sign only: give them names that a screen reader can tell.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll(".bd-sidebar-primary details > summary")) {
    const link = button.closest("li").querySelector("a");
    button.setAttribute("aria-label", `Pages under ${link.textContent.trim()}`);
  }
});
