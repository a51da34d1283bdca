// Opacity, the choice of original or overlay, and download: all in the browser, nothing is sent.
const state = Object.assign((window.cxr ??= {}), { opacity: 1, shown: 1 });
element.addEventListener("input", ({ target }) => {
    if (target.name === "opacity") {
        state.opacity = target.value / 100;
        element.querySelector("output").textContent = `${target.value} %`;
        element.style.setProperty("--opacity", state.opacity);
    }
    if (target.name === "heat") {
        state.shown = target.checked ? 1 : 0;
        element.style.setProperty("--shown", state.shown);
    }
});
element.addEventListener("click", ({ target }) => {
    const stack = target.closest("figure")?.querySelector(".stack");
    if (target.dataset.action === "fullscreen") stack.requestFullscreen?.();
    if (target.dataset.action !== "download") return;
    const [grey, layer] = stack.querySelectorAll("img");
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [grey.naturalWidth, grey.naturalHeight];
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(grey, 0, 0);
    context.globalAlpha = state.opacity * state.shown;
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = `${target.dataset.name.replace(/[^\w-]+/g, "-")}.png`;
        link.click();
        URL.revokeObjectURL(link.href);
    });
});
