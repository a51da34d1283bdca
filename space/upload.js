// Examples and pasted images go the way of any upload: their own bytes, into the file field.
const field = () => document.querySelector("#image input[type=file]");
const put = async (file) => {
    document.querySelector("#image button[aria-label='Clear']")?.click();
    for (let tries = 0; !field() && tries < 100; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const files = new DataTransfer();
    files.items.add(file);
    field().files = files.files;
    field().dispatchEvent(new Event("change", { bubbles: true }));
};
element.addEventListener("click", async ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const image = await (await fetch(button.querySelector("img").src)).blob();
    put(new File([image], button.dataset.name, { type: image.type }));
});
document.addEventListener("paste", ({ clipboardData }) => {
    const visible = document.querySelector("#image")?.offsetParent;
    if (visible && clipboardData.files.length) put(clipboardData.files[0]);
});
