import { post } from "../api.js";
import { fill, h, sentence } from "../dom.js";

/** Sign in. */
export function login(box, { signedIn }) {
  const message = h("div", { class: "login-message", role: "alert" });
  const user = h("input", { id: "user", name: "username", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true, maxlength: 64 });
  const password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true, maxlength: 1024 });
  const button = h("button", { type: "submit", class: "button primary" }, "Sign in");
  const form = h(
    "form",
    { class: "login-card", on: { submit } },
    h("h1", null, h("span", { class: "brand-mark", "aria-hidden": "true" }), "radmesh"),
    h("label", { for: "user" }, "User"),
    user,
    h("label", { for: "password" }, "Password"),
    password,
    message,
    button,
    h("p", { class: "faint" }, "Every access to patient data is written into the audit."),
    h("p", { class: "faint" }, "radmesh is not a medical device."),
  );
  fill(box, form);
  user.focus();

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    fill(message);
    try {
      await post("session", { user: user.value.trim(), password: password.value }, { anonymous: true });
      password.value = "";
      await signedIn();
    } catch (error) {
      fill(message, sentence(error.message), error.remedy ? ` ${sentence(error.remedy)}` : "");
      button.disabled = false;
      password.select();
      password.focus();
    }
  }
  return () => {};
}
